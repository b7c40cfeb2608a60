"""The peer of the benches of submissions: a handler that inserts two rows, and nothing else."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from farm.database.session import Database
from farm.settings import Settings


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "bench_parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Child(Base):
    __tablename__ = "bench_children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("bench_parents.id"))
    amount: Mapped[int]


class Item(BaseModel):
    name: str
    amount: int


def app() -> FastAPI:
    made = FastAPI()
    settings = Settings()
    db = Database(settings.database_url or f"sqlite:///{settings.home / 'bare.db'}")
    Base.metadata.create_all(db.engine)

    @made.post("/")
    def create(item: Item) -> dict[str, int]:
        with db.write() as session:
            parent = Parent(name=item.name)
            session.add(parent)
            session.flush()
            session.add(Child(parent_id=parent.id, amount=item.amount))
        return {"id": parent.id}

    return made
